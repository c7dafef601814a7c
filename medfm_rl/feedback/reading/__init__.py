"""From folders of masks and tables of reviewers and reports to entries."""
