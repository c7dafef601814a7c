"""Pages, figures and tables for a person to look at."""
