//! Renders one tile of a picture.
//!
//! `POST /` with JSON: `width` and `height` of the whole picture, `x`, `y`, `w`, `h` of the tile
//! (default: the whole picture), `seed` of the scene (default 1), `samples` per pixel and axis,
//! 1..=4 (default 2), and `format`, `rgb` (default: `h` rows of `w` pixels of three bytes) or
//! `png`. `GET /` takes the same as parameters and answers a PNG. The same picture cut in any way
//! gives the same pixels.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod png;
mod scene;
mod vector;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use scene::Scene;
use serde::Deserialize;
use skein_unikernel::{Request, Response, yield_now};
use vector::{Vector, vector};

/// Longest side of a picture, pixels.
const SIDE_MAX: u32 = 16_384;
/// Most pixels of one tile: its bytes fit into the largest answer.
const TILE_MAX: u64 = 1 << 20;
const SAMPLES_MAX: u32 = 4;

/// How a tile is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Rgb,
    Png,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    width: u32,
    height: u32,
    #[serde(default)]
    x: u32,
    #[serde(default)]
    y: u32,
    w: Option<u32>,
    h: Option<u32>,
    #[serde(default = "one")]
    seed: u64,
    #[serde(default = "two")]
    samples: u32,
    #[serde(default)]
    format: Format,
}

fn one() -> u64 {
    1
}

fn two() -> u32 {
    2
}

/// A tile of a picture: everything in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    width: u32,
    height: u32,
    x: u32,
    y: u32,
    w: u32,
    h: u32,
    seed: u64,
    samples: u32,
    format: Format,
}

impl TryFrom<Asked> for Tile {
    type Error = &'static str;

    fn try_from(asked: Asked) -> Result<Self, &'static str> {
        let Asked { width, height, x, y, seed, samples, format, .. } = asked;
        if !(1..=SIDE_MAX).contains(&width) || !(1..=SIDE_MAX).contains(&height) {
            return Err("width and height are 1 to 16384");
        }
        let (w, h) = (
            asked.w.unwrap_or(width.saturating_sub(x)),
            asked.h.unwrap_or(height.saturating_sub(y)),
        );
        let inside = |start: u32, size: u32, whole: u32| {
            size > 0 && start.checked_add(size).is_some_and(|end| end <= whole)
        };
        if !inside(x, w, width) || !inside(y, h, height) {
            return Err("the tile does not lie inside the picture");
        }
        if u64::from(w) * u64::from(h) > TILE_MAX {
            return Err("a tile has at most 1048576 pixels");
        }
        if !(1..=SAMPLES_MAX).contains(&samples) {
            return Err("samples is 1 to 4");
        }
        Ok(Self { width, height, x, y, w, h, seed, samples, format })
    }
}

/// Answers one tile.
pub async fn handle(request: Request) -> Response {
    let tile = match read(&request) {
        Ok(tile) => tile,
        Err(reason) => return Response::error(400, "TILE_MALFORMED", &reason),
    };
    let rgb = render(&tile).await;
    match tile.format {
        Format::Rgb => Response::bytes("application/octet-stream", rgb),
        Format::Png => Response::bytes("image/png", png::encode(tile.w, tile.h, &rgb)),
    }
}

fn read(request: &Request) -> Result<Tile, String> {
    let asked = if request.method() == "GET" {
        let number = |name: &str, default: u64| match request.query_param(name) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| format!("{name} is not a number")),
        };
        let side = |name, default| {
            number(name, default)
                .and_then(|value| u32::try_from(value).map_err(|_| format!("{name} is too large")))
        };
        let (width, height) = (side("width", 320)?, side("height", 200)?);
        let (x, y) = (side("x", 0)?, side("y", 0)?);
        Asked {
            width,
            height,
            x,
            y,
            w: Some(side("w", u64::from(width.saturating_sub(x)))?),
            h: Some(side("h", u64::from(height.saturating_sub(y)))?),
            seed: number("seed", 1)?,
            samples: side("samples", 2)?,
            format: Format::Png,
        }
    } else {
        serde_json::from_slice(request.body()).map_err(|error| error.to_string())?
    };
    Tile::try_from(asked).map_err(String::from)
}

/// The tile's pixels, row by row. Others get their turn after every row.
async fn render(tile: &Tile) -> Vec<u8> {
    let scene = Scene::new(tile.seed);
    let mut rgb = Vec::with_capacity(3 * tile.w as usize * tile.h as usize);
    for y in tile.y..tile.y + tile.h {
        for x in tile.x..tile.x + tile.w {
            rgb.extend(bytes(pixel(&scene, tile, x, y)));
        }
        yield_now().await;
    }
    rgb
}

/// The mean of a grid of samples inside the pixel.
fn pixel(scene: &Scene, tile: &Tile, x: u32, y: u32) -> Vector {
    let half = tile.width.min(tile.height) as f32 / 2.0;
    let step = 1.0 / tile.samples as f32;
    let mut sum = vector(0.0, 0.0, 0.0);
    for row in 0..tile.samples {
        for column in 0..tile.samples {
            let right = x as f32 + (column as f32 + 0.5) * step - tile.width as f32 / 2.0;
            let down = y as f32 + (row as f32 + 0.5) * step - tile.height as f32 / 2.0;
            let light = scene.look(right / half, -down / half);
            // A bright sample, of the sun, must not outshine its pixel's edge.
            sum = sum + vector(light.x.min(4.0), light.y.min(4.0), light.z.min(4.0));
        }
    }
    sum * (step * step)
}

/// Light to bytes: film-like, then the square root as the eye wants it.
fn bytes(light: Vector) -> [u8; 3] {
    let tone = |value: f32| {
        let exposed = value * 1.15;
        let film = exposed * (exposed + 0.55) / (exposed * (exposed + 0.75) + 0.28);
        (libm::sqrtf(film.clamp(0.0, 1.0)) * 255.0 + 0.5) as u8
    };
    [tone(light.x), tone(light.y), tone(light.z)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::Future;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};
    use proptest::prelude::*;

    fn finish<F: Future>(future: F) -> F::Output {
        let mut future = pin!(future);
        loop {
            let context = &mut Context::from_waker(Waker::noop());
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return output;
            }
        }
    }

    fn ask(method: &str, target: &str, body: &str) -> Response {
        finish(handle(Request::new(method, target, body.as_bytes().to_vec()).unwrap()))
    }

    fn tile(x: u32, y: u32, w: u32, h: u32) -> Vec<u8> {
        let body = format!(
            "{{\"width\":40,\"height\":24,\"x\":{x},\"y\":{y},\"w\":{w},\"h\":{h},\"samples\":1}}"
        );
        let response = ask("POST", "/", &body);
        assert_eq!(response.status(), 200);
        response.body().to_vec()
    }

    #[test]
    fn answers_both_formats() {
        assert_eq!(tile(0, 0, 40, 24).len(), 40 * 24 * 3);
        let response = ask("GET", "/?width=20&height=10&samples=1", "");
        assert_eq!(response.header("content-type"), Some("image/png"));
        assert!(response.body().starts_with(b"\x89PNG"));
    }

    #[test]
    fn seeds_make_different_pictures() {
        let picture = |seed| {
            ask(
                "POST",
                "/",
                &format!("{{\"width\":30,\"height\":20,\"seed\":{seed},\"samples\":1}}"),
            )
            .body()
            .to_vec()
        };
        assert_eq!(picture(1), picture(1));
        assert_ne!(picture(1), picture(2));
    }

    #[test]
    fn refuses_what_is_out_of_range() {
        for body in [
            "",
            "{}",
            "{\"width\":0,\"height\":1}",
            "{\"width\":1,\"height\":16385}",
            "{\"width\":10,\"height\":10,\"x\":10}",
            "{\"width\":10,\"height\":10,\"x\":4294967295,\"w\":2}",
            "{\"width\":16384,\"height\":16384}",
            "{\"width\":10,\"height\":10,\"samples\":5}",
            "{\"width\":10,\"height\":10,\"colour\":\"red\"}",
            "{\"width\":10,\"height\":10,\"format\":\"gif\"}",
        ] {
            let response = ask("POST", "/", body);
            assert_eq!(response.status(), 400, "{body}");
            assert!(String::from_utf8_lossy(response.body()).contains("TILE_MALFORMED"));
        }
        assert_eq!(ask("GET", "/?width=many", "").status(), 400);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn tiles_fit_together(x in 1u32..40, y in 1u32..24) {
            let whole = tile(0, 0, 40, 24);
            let parts = [[0, 0, x, y], [x, 0, 40 - x, y], [0, y, x, 24 - y], [x, y, 40 - x, 24 - y]];
            for [left, top, w, h] in parts.into_iter().filter(|part| part[2] > 0 && part[3] > 0) {
                let part = tile(left, top, w, h);
                for (row, line) in part.chunks(3 * w as usize).enumerate() {
                    let at = 3 * ((top as usize + row) * 40 + left as usize);
                    prop_assert_eq!(line, &whole[at..at + line.len()]);
                }
            }
        }
    }
}
