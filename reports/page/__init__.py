"""The report: one page that needs no network, a file for each group of panels."""
