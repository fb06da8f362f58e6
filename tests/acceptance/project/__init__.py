"""A project as a user would write it; its handlers record their effects for the tests."""
