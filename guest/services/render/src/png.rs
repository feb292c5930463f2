//! The smallest PNG encoder that does: eight bits, RGB, one data chunk.

use alloc::vec::Vec;

const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
/// Fast; pictures of this kind hardly get smaller with more effort.
const LEVEL: u8 = 3;

/// Encodes rows of RGB bytes.
pub(crate) fn encode(width: u32, height: u32, rgb: &[u8]) -> Vec<u8> {
    let mut rows = Vec::with_capacity(rgb.len() + height as usize);
    let row = (3 * width as usize).max(1);
    for line in rgb.chunks(row) {
        // Filter 1: each byte less the one three before it, which smooth pictures compress well
        // with.
        rows.push(1);
        rows.extend(line.iter().enumerate().map(|(at, byte)| {
            byte.wrapping_sub(at.checked_sub(3).map_or(0, |before| line[before]))
        }));
    }
    let mut header = Vec::with_capacity(13);
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut out = Vec::from(SIGNATURE);
    chunk(&mut out, *b"IHDR", &header);
    chunk(&mut out, *b"IDAT", &miniz_oxide::deflate::compress_to_vec_zlib(&rows, LEVEL));
    chunk(&mut out, *b"IEND", &[]);
    out
}

fn chunk(out: &mut Vec<u8>, kind: [u8; 4], data: &[u8]) {
    // Tiles are bounded far below 4 GiB.
    out.extend((data.len() as u32).to_be_bytes());
    let start = out.len();
    out.extend(kind);
    out.extend(data);
    let sum = crc(&out[start..]);
    out.extend(sum.to_be_bytes());
}

/// CRC-32 as PNG wants it.
fn crc(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ (0xedb8_8320 & (sum & 1).wrapping_neg());
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_a_png() {
        assert_eq!(crc(b"123456789"), 0xcbf4_3926);
        let rgb = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let png = encode(2, 2, &rgb);
        assert!(png.starts_with(&SIGNATURE) && png.ends_with(&[0xae, 0x42, 0x60, 0x82]));
        let length = u32::from_be_bytes(png[33..37].try_into().unwrap()) as usize;
        let rows = miniz_oxide::inflate::decompress_to_vec_zlib(&png[41..41 + length]).unwrap();
        assert_eq!(rows, [1, 1, 2, 3, 3, 3, 3, 1, 7, 8, 9, 3, 3, 3]);
    }
}
