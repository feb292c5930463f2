//! What carries the datagrams of the light protocol: Ethernet frames, or UDP.
