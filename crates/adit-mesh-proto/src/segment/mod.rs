//! Segmentation: splits super-packets into segments and joins segments into super-packets.
