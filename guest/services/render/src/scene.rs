//! The picture: balls of glass, metal and colour over calm water at dusk.
//!
//! A pixel's colour depends on nothing but the picture's size, its seed and the pixel's place, so
//! tiles rendered by different machines fit together.

use alloc::vec::Vec;

use crate::vector::{Vector, vector};

/// Balls in a scene.
const BALLS: u32 = 13;
/// 6: light that was reflected or refracted more often than this is hardly seen.
const DEPTH_MAX: u32 = 6;
/// Rays start this far off the surface they leave, so that they do not hit it again.
const OFF_SURFACE: f32 = 1e-3;
const SUN: Vector = vector(-0.52, 0.26, 0.81);

/// What a ball is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Material {
    Matte,
    Metal,
    Glass,
}

#[derive(Clone, Copy, Debug)]
struct Ball {
    centre: Vector,
    radius: f32,
    colour: Vector,
    material: Material,
}

#[derive(Clone, Copy)]
struct Ray {
    origin: Vector,
    direction: Vector,
}

impl Ray {
    fn at(self, distance: f32) -> Vector {
        self.origin + self.direction * distance
    }
}

/// What a ray meets first.
enum Hit<'a> {
    Ball(&'a Ball, f32),
    Water(f32),
    Sky,
}

/// The balls that a seed makes.
#[derive(Debug)]
pub(crate) struct Scene {
    balls: Vec<Ball>,
}

/// Numbers from 0 to 1 that look random and follow from their seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((value ^ (value >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
    }
}

/// A colour of the rainbow, `hue` from 0 to 1, not too bright.
fn hue(hue: f32) -> Vector {
    let wave = |shift: f32| {
        let part = (hue + shift) - libm::floorf(hue + shift);
        (libm::fabsf(part * 6.0 - 3.0) - 1.0).clamp(0.0, 1.0)
    };
    vector(wave(0.0), wave(2.0 / 3.0), wave(1.0 / 3.0)).mixed(vector(1.0, 0.95, 0.9), 0.25)
}

impl Scene {
    /// The scene of that seed: one large ball, and smaller ones on a spiral around it.
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let first_hue = dice.roll();
        let turn = dice.roll();
        let mut balls = Vec::with_capacity(BALLS as usize);
        balls.push(Ball {
            centre: vector(0.0, 1.25, 5.2),
            radius: 1.25,
            colour: vector(0.98, 0.96, 0.92),
            material: Material::Metal,
        });
        for number in 1..BALLS {
            let part = number as f32 / BALLS as f32;
            // The golden angle spreads them evenly.
            let angle = (turn + number as f32 * 0.381_966) * core::f32::consts::TAU;
            let distance = 1.7 + 2.6 * part + 0.3 * dice.roll();
            let radius = 0.28 + 0.42 * dice.roll() * (1.1 - part * 0.5);
            let height = radius + if number % 4 == 0 { 0.6 + dice.roll() } else { 0.0 };
            let material = match number % 3 {
                0 => Material::Glass,
                1 => Material::Matte,
                _ => Material::Metal,
            };
            balls.push(Ball {
                centre: vector(
                    distance * libm::cosf(angle),
                    height,
                    5.2 + distance * libm::sinf(angle) * 0.8,
                ),
                radius,
                colour: hue(first_hue + 0.7 * part),
                material,
            });
        }
        Self { balls }
    }

    /// Light that comes through the picture at `right`, `up`: -1..=1 across its shorter side.
    pub(crate) fn look(&self, right: f32, up: f32) -> Vector {
        let direction = vector(right * 0.62, up * 0.62 - 0.12, 1.0).normal();
        self.follow(Ray { origin: vector(0.0, 1.75, -2.2), direction }, DEPTH_MAX)
    }

    fn meet(&self, ray: Ray) -> Hit<'_> {
        let mut hit = Hit::Sky;
        let mut nearest = f32::MAX;
        if ray.direction.y < -1e-4 {
            nearest = -ray.origin.y / ray.direction.y;
            hit = Hit::Water(nearest);
        }
        for ball in &self.balls {
            if let Some(distance) = ball.distance(ray).filter(|distance| *distance < nearest) {
                nearest = distance;
                hit = Hit::Ball(ball, distance);
            }
        }
        hit
    }

    fn follow(&self, ray: Ray, depth: u32) -> Vector {
        if depth == 0 {
            return sky(ray.direction);
        }
        match self.meet(ray) {
            Hit::Sky => sky(ray.direction),
            Hit::Water(distance) => self.water(ray, distance, depth),
            Hit::Ball(ball, distance) => self.ball(ball, ray, distance, depth),
        }
    }

    fn water(&self, ray: Ray, distance: f32, depth: u32) -> Vector {
        let place = ray.at(distance);
        // Waves, calmer far away where they would only flicker.
        let calm = 0.09 / (1.0 + distance * 0.12);
        let wave = |a: f32, b: f32, c: f32| libm::sinf(place.x * a + place.z * b + c);
        let slope = wave(1.7, 4.3, 0.3) + 0.6 * wave(-5.1, 3.1, 1.1) + 0.4 * wave(9.3, 8.7, 2.0);
        let cross = wave(3.9, -1.3, 0.7) + 0.5 * wave(6.1, 7.9, 0.0);
        let normal = vector(slope * calm, 1.0, cross * calm).normal();
        let mirrored = ray.direction.mirrored(normal);
        let up = vector(mirrored.x, libm::fabsf(mirrored.y) + 1e-3, mirrored.z).normal();
        let seen = self.follow(
            Ray { origin: place + vector(0.0, OFF_SURFACE, 0.0), direction: up },
            depth - 1,
        );
        let depths = vector(0.010, 0.035, 0.055);
        let share = fresnel(-ray.direction.dot(normal), 0.04);
        let near = depths.mixed(seen, share);
        near.mixed(sky(vector(ray.direction.x, 0.02, ray.direction.z)), haze(distance))
    }

    fn ball(&self, ball: &Ball, ray: Ray, distance: f32, depth: u32) -> Vector {
        let place = ray.at(distance);
        let outward = (place - ball.centre) * (1.0 / ball.radius);
        let facing = -ray.direction.dot(outward);
        let reflect = |scene: &Self| {
            let origin = place + outward * OFF_SURFACE;
            scene.follow(Ray { origin, direction: ray.direction.mirrored(outward) }, depth - 1)
        };
        match ball.material {
            Material::Metal => {
                let tint = ball.colour.mixed(vector(1.0, 1.0, 1.0), fresnel(facing, 0.0));
                reflect(self).filtered(tint)
            }
            Material::Matte => {
                let light = self.light(place + outward * OFF_SURFACE, outward);
                let shine = fresnel(facing, 0.03);
                ball.colour.filtered(light).mixed(reflect(self), shine)
            }
            Material::Glass => self.glass(ball, ray, place, outward, depth),
        }
    }

    fn glass(&self, ball: &Ball, ray: Ray, place: Vector, outward: Vector, depth: u32) -> Vector {
        let entering = ray.direction.dot(outward) < 0.0;
        let normal = if entering { outward } else { -outward };
        let ratio = if entering { 1.0 / 1.45 } else { 1.45 };
        let facing = -ray.direction.dot(normal);
        let bent = 1.0 - ratio * ratio * (1.0 - facing * facing);
        let mirrored = Ray {
            origin: place + normal * OFF_SURFACE,
            direction: ray.direction.mirrored(normal).normal(),
        };
        if bent < 0.0 {
            return self.follow(mirrored, depth - 1);
        }
        let direction = ray.direction * ratio + normal * (ratio * facing - libm::sqrtf(bent));
        let through = Ray { origin: place - normal * OFF_SURFACE, direction: direction.normal() };
        let tint = if entering {
            ball.colour.mixed(vector(1.0, 1.0, 1.0), 0.8)
        } else {
            vector(1.0, 1.0, 1.0)
        };
        let seen = self.follow(through, depth - 1).filtered(tint);
        let share = fresnel(facing, 0.04);
        // Reflections inside add nothing that is seen, and double the work.
        if entering && share > 0.01 {
            seen.mixed(self.follow(mirrored, depth - 1), share)
        } else {
            seen
        }
    }

    /// Light that falls on a matte surface: the sun where nothing is in between, and the sky.
    fn light(&self, place: Vector, normal: Vector) -> Vector {
        let sun = SUN.normal();
        let ambient = vector(0.22, 0.24, 0.34) * (0.6 + 0.4 * normal.y);
        let slant = normal.dot(sun);
        if slant <= 0.0 {
            return ambient;
        }
        let shade = match self.meet(Ray { origin: place, direction: sun }) {
            Hit::Ball(ball, _) if ball.material == Material::Glass => 0.6,
            Hit::Ball(..) => 0.0,
            Hit::Water(_) | Hit::Sky => 1.0,
        };
        ambient + vector(2.1, 1.55, 1.0) * (slant * shade)
    }
}

impl Ball {
    /// How far along the ray it is met.
    fn distance(&self, ray: Ray) -> Option<f32> {
        let to = self.centre - ray.origin;
        let along = to.dot(ray.direction);
        let inside = self.radius * self.radius - (to.dot(to) - along * along);
        if inside <= 0.0 {
            return None;
        }
        let half = libm::sqrtf(inside);
        [along - half, along + half].into_iter().find(|distance| *distance > OFF_SURFACE)
    }
}

/// Share of light that is reflected: `least` head-on, everything at a glance (Schlick).
fn fresnel(facing: f32, least: f32) -> f32 {
    let glance = (1.0 - facing).clamp(0.0, 1.0);
    let square = glance * glance;
    least + (1.0 - least) * square * square * glance
}

/// How much of what is seen at a distance is air.
fn haze(distance: f32) -> f32 {
    let share = (distance - 8.0).max(0.0) / 90.0;
    share.min(1.0)
}

/// The sky at dusk, with the sun and its glow.
fn sky(direction: Vector) -> Vector {
    let height = direction.y.max(0.0);
    let low = vector(0.98, 0.52, 0.26);
    let middle = vector(0.58, 0.36, 0.50);
    let high = vector(0.07, 0.10, 0.26);
    let gradient = if height < 0.18 {
        low.mixed(middle, height / 0.18)
    } else {
        middle.mixed(high, ((height - 0.18) / 0.55).min(1.0))
    };
    let towards = direction.dot(SUN.normal()).max(0.0);
    // Powers by squaring: 8, 64, 1024.
    let power = |count: u32| (0..count).fold(towards, |value, _| value * value);
    let glow = vector(1.0, 0.55, 0.25) * (0.35 * power(3));
    let halo = vector(1.0, 0.75, 0.45) * (0.6 * power(6));
    let disc = vector(6.0, 4.6, 3.0) * power(11);
    gradient + glow + halo + disc
}
