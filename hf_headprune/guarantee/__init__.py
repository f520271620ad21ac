"""What can be shown about unseen data: exact tests, splits, and a certificate that anyone can check again."""
