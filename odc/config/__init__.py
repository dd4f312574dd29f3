"""Configs: found by name, read, overridden; and the one place where they are checked, :mod:`odc.config.checking`."""

from odc.config.loading import at, configs_folder, find_config, load_config, override, parse_config

__all__ = ["at", "configs_folder", "find_config", "load_config", "override", "parse_config"]
