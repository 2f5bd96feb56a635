"""What several rooms need: ranks, what a person sees, pictures, optional packages. Knows no other room."""
