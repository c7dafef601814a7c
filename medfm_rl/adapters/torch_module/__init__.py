"""Any torch module, TorchScript file or MONAI UNet that maps images to logits."""
