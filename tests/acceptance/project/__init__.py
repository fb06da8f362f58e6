"""A project as a user would write it; its handlers note their effects for the tests."""
