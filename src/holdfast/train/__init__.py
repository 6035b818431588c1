"""What a training script holds: `holdfast.Run`."""
