"""What several rooms need: ranks, display, figures, optional packages. Imports no other room."""
