"""Makes what lies beside it importable from every folder of tests."""
