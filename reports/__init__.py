"""What tables: records of finished runs, their statistics, tables and pages. No result depends on it."""
