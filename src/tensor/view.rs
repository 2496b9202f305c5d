//! Tensors own a cut of an arena; views borrow it. The borrow checker keeps two writers apart.

use super::memory::{Region, Space};
use super::{DType, Shape};
use crate::error::Result;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// A dense row-major tensor, sole owner of its bytes within an arena.
pub struct Tensor {
    region: Arc<Region>,
    offset: usize,
    dtype: DType,
    shape: Shape,
}

impl Tensor {
    pub(super) fn new(region: Arc<Region>, offset: usize, dtype: DType, shape: Shape) -> Self {
        Tensor { region, offset, dtype, shape }
    }

    /// A host tensor of its own, for tests and small tables.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Self {
        let mut tensor = Self::host(DType::F32, shape);
        tensor.view_mut().f32().copy_from_slice(values);
        tensor
    }

    /// A host tensor of its own, rounded to bf16.
    pub fn from_f32_as_bf16(values: &[f32], shape: &[usize]) -> Self {
        let mut tensor = Self::host(DType::Bf16, shape);
        tensor.view_mut().bf16().iter_mut().zip(values).for_each(|(out, &v)| *out = bf16::from_f32(v));
        tensor
    }

    pub fn from_i32(values: &[i32], shape: &[usize]) -> Self {
        let mut tensor = Self::host(DType::I32, shape);
        tensor.view_mut().i32().copy_from_slice(values);
        tensor
    }

    /// Zeros on the host, outside any arena.
    pub fn host(dtype: DType, shape: &[usize]) -> Self {
        Self::alone(&super::HostAllocator, dtype, shape).expect("host memory")
    }

    /// Zeros in a region of exactly their size, outside any arena.
    pub fn alone(allocator: &dyn super::Allocator, dtype: DType, shape: &[usize]) -> Result<Self> {
        let shape = Shape::checked(shape)?;
        let region = allocator.region(shape.elements() * dtype.size())?;
        Ok(Tensor { region, offset: 0, dtype, shape })
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    pub fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }

    pub fn view(&self) -> View<'_> {
        View {
            address: self.region.address + self.offset as u64,
            dtype: self.dtype,
            shape: self.shape,
            space: self.region.space,
            life: PhantomData,
        }
    }

    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { view: self.view(), life: PhantomData }
    }

    /// Writes through a shared borrow.
    ///
    /// # Safety
    /// Until the result is gone, nobody else may read or write these elements, but in an order that the caller keeps by other means.
    pub unsafe fn alias_mut(&self) -> ViewMut<'_> {
        // SAFETY: the caller's promise.
        unsafe { self.view().writable() }
    }

    /// The first `n` rows.
    pub fn rows(&self, n: usize) -> View<'_> {
        self.view().rows(0..n)
    }

    /// The first `n` rows.
    pub fn rows_mut(&mut self, n: usize) -> ViewMut<'_> {
        self.view_mut().into_rows(0..n)
    }
}

/// A shared borrow of tensor elements. On a device it is an address that only kernels may follow.
#[derive(Clone, Copy)]
pub struct View<'a> {
    address: u64,
    dtype: DType,
    shape: Shape,
    space: Space,
    life: PhantomData<&'a [u8]>,
}

impl<'a> View<'a> {
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    pub fn space(&self) -> Space {
        self.space
    }
    pub fn address(&self) -> u64 {
        self.address
    }
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Steps `range` of the first dimension.
    pub fn rows(self, range: Range<usize>) -> View<'a> {
        assert!(range.start <= range.end && range.end <= self.shape[0], "rows {range:?} of {}", self.shape);
        let offset = range.start * self.shape.row_elements() * self.dtype.size();
        View { address: self.address + offset as u64, shape: self.shape.with_rows(range.len()), ..self }
    }

    /// The same elements under another shape.
    pub fn reshape(self, shape: &[usize]) -> View<'a> {
        let shape = Shape::new(shape);
        assert_eq!(shape.elements(), self.elements(), "{} does not reshape to {shape}", self.shape);
        View { shape, ..self }
    }

    /// The same elements, borrowed for as long as somebody likes.
    ///
    /// # Safety
    /// Whoever follows the result keeps to the rules of borrows by other means.
    pub unsafe fn unbounded(self) -> View<'static> {
        View { life: PhantomData, ..self }
    }

    /// To be written.
    ///
    /// # Safety
    /// Until the result is gone, nobody else may read or write these elements, but in an order that the caller keeps by other means.
    pub unsafe fn writable(self) -> ViewMut<'a> {
        ViewMut { view: self, life: PhantomData }
    }

    /// The same bytes as one row of elements of another type.
    pub fn reinterpret(self, dtype: DType) -> View<'a> {
        assert!(self.bytes().is_multiple_of(dtype.size()), "{} bytes are no {dtype} elements", self.bytes());
        View { dtype, shape: Shape::new(&[self.bytes() / dtype.size()]), ..self }
    }

    pub fn f32(self) -> &'a [f32] {
        self.host_slice(DType::F32)
    }
    pub fn bf16(self) -> &'a [bf16] {
        self.host_slice(DType::Bf16)
    }
    pub fn i32(self) -> &'a [i32] {
        self.host_slice(DType::I32)
    }
    pub fn raw_bytes(self) -> &'a [u8] {
        assert!(self.space.is_host(), "only host memory can be read by the CPU");
        // SAFETY: host memory of this many bytes, initialised by its allocator, borrowed for 'a.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes()) }
    }

    fn host_slice<T: bytemuck::Pod>(self, dtype: DType) -> &'a [T] {
        assert_eq!(self.dtype, dtype, "a tensor of {} was read as {dtype}", self.dtype);
        bytemuck::cast_slice(self.raw_bytes())
    }
}

/// An exclusive borrow of tensor elements.
pub struct ViewMut<'a> {
    view: View<'a>,
    life: PhantomData<&'a mut [u8]>,
}

impl<'a> ViewMut<'a> {
    pub fn shape(&self) -> &Shape {
        &self.view.shape
    }
    pub fn dtype(&self) -> DType {
        self.view.dtype
    }
    pub fn space(&self) -> Space {
        self.view.space
    }
    pub fn address(&self) -> u64 {
        self.view.address
    }
    pub fn elements(&self) -> usize {
        self.view.elements()
    }
    pub fn bytes(&self) -> usize {
        self.view.bytes()
    }

    /// Reads what was written.
    pub fn as_view(&self) -> View<'_> {
        self.view
    }
    /// A shorter exclusive borrow of the same elements.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { view: self.view, life: PhantomData }
    }
    /// Steps `range` of the first dimension.
    pub fn into_rows(self, range: Range<usize>) -> ViewMut<'a> {
        ViewMut { view: self.view.rows(range), life: PhantomData }
    }
    /// The same elements under another shape.
    pub fn into_shape(self, shape: &[usize]) -> ViewMut<'a> {
        ViewMut { view: self.view.reshape(shape), life: PhantomData }
    }
    /// The same bytes as one row of elements of another type.
    pub fn reinterpret(self, dtype: DType) -> ViewMut<'a> {
        ViewMut { view: self.view.reinterpret(dtype), life: PhantomData }
    }
    /// Two disjoint halves along the first dimension.
    pub fn split_rows(self, at: usize) -> (ViewMut<'a>, ViewMut<'a>) {
        let rows = self.view.shape[0];
        let (low, high) = (self.view.rows(0..at), self.view.rows(at..rows));
        (ViewMut { view: low, life: PhantomData }, ViewMut { view: high, life: PhantomData })
    }

    pub fn f32(self) -> &'a mut [f32] {
        self.host_slice(DType::F32)
    }
    pub fn bf16(self) -> &'a mut [bf16] {
        self.host_slice(DType::Bf16)
    }
    pub fn i32(self) -> &'a mut [i32] {
        self.host_slice(DType::I32)
    }
    pub fn raw_bytes(self) -> &'a mut [u8] {
        assert!(self.view.space.is_host(), "only host memory can be written by the CPU");
        // SAFETY: host memory of this many bytes, borrowed exclusively for 'a.
        unsafe { std::slice::from_raw_parts_mut(self.view.address as *mut u8, self.view.bytes()) }
    }

    fn host_slice<T: bytemuck::Pod>(self, dtype: DType) -> &'a mut [T] {
        assert_eq!(self.view.dtype, dtype, "a tensor of {} was written as {dtype}", self.view.dtype);
        bytemuck::cast_slice_mut(self.raw_bytes())
    }
}
