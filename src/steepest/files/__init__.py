"""Files that are written atomically, tensors in files, and the style of pictures."""
