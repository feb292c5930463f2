//! Vectors of three numbers: places, directions, colours.

use core::ops::{Add, Mul, Neg, Sub};

/// Three numbers of single precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Vector {
    /// To the right; red.
    pub(crate) x: f32,
    /// Up; green.
    pub(crate) y: f32,
    /// Away from the camera; blue.
    pub(crate) z: f32,
}

/// Shorthand.
pub(crate) const fn vector(x: f32, y: f32, z: f32) -> Vector {
    Vector { x, y, z }
}

impl Vector {
    /// Scalar product.
    pub(crate) fn dot(self, other: Self) -> f32 {
        self.x * other.x + self.y * other.y + self.z * other.z
    }

    /// The same direction with length 1.
    pub(crate) fn normal(self) -> Self {
        self * (1.0 / libm::sqrtf(self.dot(self)))
    }

    /// Mirrored at a surface whose normal is `normal`.
    pub(crate) fn mirrored(self, normal: Self) -> Self {
        self - normal * (2.0 * self.dot(normal))
    }

    /// Product of each pair: light through a filter.
    pub(crate) fn filtered(self, filter: Self) -> Self {
        vector(self.x * filter.x, self.y * filter.y, self.z * filter.z)
    }

    /// `self` at 0, `other` at 1.
    pub(crate) fn mixed(self, other: Self, share: f32) -> Self {
        self * (1.0 - share) + other * share
    }
}

impl Add for Vector {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        vector(self.x + other.x, self.y + other.y, self.z + other.z)
    }
}

impl Sub for Vector {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        vector(self.x - other.x, self.y - other.y, self.z - other.z)
    }
}

impl Mul<f32> for Vector {
    type Output = Self;

    fn mul(self, factor: f32) -> Self {
        vector(self.x * factor, self.y * factor, self.z * factor)
    }
}

impl Neg for Vector {
    type Output = Self;

    fn neg(self) -> Self {
        vector(-self.x, -self.y, -self.z)
    }
}
