"""What a plan prints: tables, plots and pages."""
