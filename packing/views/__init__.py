"""Views: how one image is shown, drawn before any pixel is decoded."""
