"""What stands on an encoder: transducer and CTC heads."""
