"""One entry a chip: `tpus`, `gpus` (data centres) and `cards` (PCIe). A new chip is one entry in one of these files."""
