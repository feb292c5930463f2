//! The check behind each datagram, where both ends want one.

use crc::{CRC_32_ISCSI, Crc, Table};

/// Bytes of the check.
pub(crate) const CHECK_BYTES: usize = 4;

/// Sixteen bytes at a time.
static CRC: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// CRC-32C (Castagnoli), as iSCSI has it (RFC 3720, section 12.1): finds every error of up to three bits in a datagram.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn as_the_standard_has_it() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
