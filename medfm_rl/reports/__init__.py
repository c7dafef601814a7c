"""What a person looks at: pages, figures and tables."""
