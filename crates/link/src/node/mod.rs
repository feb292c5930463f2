//! The daemon between two hosts: from rings to the light protocol and back.
