"""Model folders of nnU-Net v2, and of TotalSegmentator, which are such."""
