"""The choice of what is returned: candidates, what can be said of them, and the decision."""
