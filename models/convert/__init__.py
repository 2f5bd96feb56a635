"""Other people's weights, translated to ours."""
