"""What requests carry beside their token ids, and the digests of their adapters. Nothing here blocks its caller."""
