//! The light protocol: reliable, windowed, straight on Ethernet or in UDP.
