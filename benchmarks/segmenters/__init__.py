"""The whole loop with segmenters other than a small 2-D U-Net."""
