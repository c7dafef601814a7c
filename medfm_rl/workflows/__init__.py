"""What a person asks for, step by step."""
