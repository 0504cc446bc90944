"""Champion and challenger on the same rows go in; gates with their numbers come out."""
