"""Methods side by side: the cells, their table and their report."""
