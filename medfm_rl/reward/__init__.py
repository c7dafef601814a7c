"""D_R, how actions are collected into it, and the networks that learn segmentation quality from it."""
