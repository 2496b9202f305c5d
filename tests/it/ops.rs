//! The CPU backend against finite differences and against plain loops in f64.

use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::*;
use limo_engine::tensor::{DType, Tensor};

/// Deterministic, asymmetric values with mean `mean` and deviation about `scale`.
pub fn values(n: usize, seed: u64, mean: f32, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| mean + scale * 2.0 * (next() + next())).collect()
}

fn tensor(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_f32(&values(shape.iter().product(), seed, 0.2, 0.6), shape)
}

pub fn zeros(shape: &[usize]) -> Tensor {
    Tensor::host(DType::F32, shape)
}

/// NaN, so that an element nobody writes is noticed.
fn poisoned(shape: &[usize]) -> Tensor {
    Tensor::from_f32(&vec![f32::NAN; shape.iter().product()], shape)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum()
}

pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| (a as f64 - b as f64).powi(2)).sum();
    (difference / b.iter().map(|&b| (b as f64).powi(2)).sum::<f64>()).sqrt()
}

/// Compares ⟨gradient, direction⟩ with a central difference of `loss` along random directions from `x`.
fn check_gradient(name: &str, x: &Tensor, gradient: &[f32], loss: impl Fn(&Tensor) -> f64) {
    const STEP: f32 = 4e-3;
    for seed in 1..4 {
        let direction = values(x.shape().elements(), 1000 + seed, 0.0, 1.0);
        let moved = |step: f32| {
            let moved: Vec<f32> = x.view().f32().iter().zip(&direction).map(|(&x, &d)| x + step * d).collect();
            loss(&Tensor::from_f32(&moved, x.shape()))
        };
        let numeric = (moved(STEP) - moved(-STEP)) / (2.0 * STEP as f64);
        let analytic = dot(gradient, &direction);
        let scale = gradient.iter().map(|&g| (g as f64).powi(2)).sum::<f64>().sqrt();
        assert!(scale > 0.0, "{name}: the gradient is zero, so the comparison compares nothing");
        let error = (numeric - analytic).abs() / scale;
        assert!(error <= 3e-3, "{name}: numeric {numeric}, analytic {analytic}, error {error}");
    }
}

#[test]
fn rms_norm_gradients() {
    for (t, d) in [(1, 7), (5, 33), (300, 16)] {
        let (x, weight, dy) = (tensor(1, &[t, d]), tensor(2, &[d]), tensor(3, &[t, d]));
        let forward = |x: &Tensor, weight: &Tensor| {
            let (mut y, mut rstd) = (poisoned(&[t, d]), poisoned(&[t]));
            let (x, weight) = (x.view(), weight.view());
            Cpu.rms_norm(RmsNorm { x, residual: None, weight, eps: 1e-6, y: y.view_mut(), rstd: rstd.view_mut() }).unwrap();
            (y, rstd)
        };
        let loss = |x: &Tensor, weight: &Tensor| dot(forward(x, weight).0.view().f32(), dy.view().f32());
        let (_, rstd) = forward(&x, &weight);
        let backward = |accumulate: bool| {
            let (mut dsum, mut dweight) = (tensor(4, &[t, d]), tensor(5, &[d]));
            let mut partials = poisoned(&[RmsNormBackward::PARTIALS, d]);
            Cpu.rms_norm_backward(RmsNormBackward {
                dy: dy.view(),
                sum: x.view(),
                weight: weight.view(),
                rstd: rstd.view(),
                dsum: dsum.view_mut(),
                accumulate,
                dweight: dweight.view_mut(),
                partials: partials.view_mut(),
            })
            .unwrap();
            (dsum.view().f32().to_vec(), dweight.view().f32().to_vec())
        };
        let subtract = |a: &[f32], b: &Tensor| a.iter().zip(b.view().f32()).map(|(a, b)| a - b).collect::<Vec<_>>();
        let (dx, dweight) = backward(false);
        check_gradient("rms_norm x", &x, &dx, |x| loss(x, &weight));
        check_gradient("rms_norm weight", &weight, &subtract(&dweight, &tensor(5, &[d])), |weight| loss(&x, weight));
        assert!(relative_error(&subtract(&backward(true).0, &tensor(4, &[t, d])), &dx) < 1e-5, "accumulate adds");
    }
}

#[test]
fn the_fused_residual_is_the_sum() {
    let (t, d) = (3, 10);
    let (x, delta, weight) = (tensor(1, &[t, d]), tensor(2, &[t, d]), tensor(3, &[d]));
    let (mut sum, mut y, mut rstd) = (poisoned(&[t, d]), poisoned(&[t, d]), poisoned(&[t]));
    Cpu.rms_norm(RmsNorm {
        x: x.view(),
        residual: Some(Residual { delta: delta.view(), sum: sum.view_mut() }),
        weight: weight.view(),
        eps: 1e-5,
        y: y.view_mut(),
        rstd: rstd.view_mut(),
    })
    .unwrap();
    for row in 0..t {
        let s: Vec<f64> = (0..d).map(|i| (x.view().f32()[row * d + i] + delta.view().f32()[row * d + i]) as f64).collect();
        let scale = 1.0 / (s.iter().map(|s| s * s).sum::<f64>() / d as f64 + 1e-5).sqrt();
        assert!((rstd.view().f32()[row] as f64 - scale).abs() < 1e-6 * scale);
        for (i, s) in s.iter().enumerate() {
            assert_eq!(sum.view().f32()[row * d + i] as f64, *s);
            let expected = s * scale * weight.view().f32()[i] as f64;
            assert!((y.view().f32()[row * d + i] as f64 - expected).abs() < 1e-6);
        }
    }
}

#[test]
fn gemm_in_every_orientation() {
    for (m, n, k) in [(1, 1, 1), (1, 5, 3), (7, 4, 9), (33, 65, 17)] {
        let (a, b, bias, c) =
            (values(m * k, 1, 0.1, 1.0), values(k * n, 2, 0.3, 1.0), values(n, 3, 0.0, 1.0), values(m * n, 4, 0.0, 1.0));
        for case in 0..16 {
            let [at, bt, with_bias, accumulate] = [1, 2, 4, 8].map(|bit| case & bit != 0);
            let element_a = |i: usize, l: usize| if at { a[l * m + i] } else { a[i * k + l] };
            let element_b = |l: usize, j: usize| if bt { b[j * k + l] } else { b[l * n + j] };
            let a_view = Tensor::from_f32(&a, &if at { [k, m] } else { [m, k] });
            let b_view = Tensor::from_f32(&b, &if bt { [n, k] } else { [k, n] });
            let bias_view = Tensor::from_f32(&bias, &[n]);
            let mut out = if accumulate { Tensor::from_f32(&c, &[m, n]) } else { poisoned(&[m, n]) };
            Cpu.gemm(Gemm {
                a: Operand { view: a_view.view(), transposed: at },
                b: Operand { view: b_view.view(), transposed: bt },
                bias: with_bias.then(|| bias_view.view()),
                c: out.view_mut(),
                accumulate,
                algorithm_rows: None,
            })
            .unwrap();
            let expected: Vec<f32> = (0..m * n)
                .map(|at| {
                    let (i, j) = (at / n, at % n);
                    let product: f64 = (0..k).map(|l| element_a(i, l) as f64 * element_b(l, j) as f64).sum();
                    let start = if accumulate { c[at] as f64 } else { 0.0 } + if with_bias { bias[j] as f64 } else { 0.0 };
                    (start + product) as f32
                })
                .collect();
            let error = relative_error(out.view().f32(), &expected);
            assert!(error <= 1e-6, "{m}x{n}x{k} case {case}: {error}");
        }
    }
}

#[test]
fn bias_gradient() {
    for (t, n) in [(1, 5), (11, 70), (130, 129)] {
        let (x, weight, bias, dy) = (tensor(1, &[t, 3]), tensor(2, &[n, 3]), tensor(3, &[n]), tensor(4, &[t, n]));
        let (mut dbias, mut partials) = (tensor(5, &[n]), poisoned(&[BiasBackward::PARTIALS, n]));
        let op = BiasBackward { dy: dy.view(), dbias: dbias.view_mut(), partials: partials.view_mut() };
        Cpu.bias_backward(op).unwrap();
        let before = tensor(5, &[n]);
        let added: Vec<f32> =
            dbias.view().f32().iter().zip(before.view().f32()).map(|(after, before)| after - before).collect();
        check_gradient("bias", &bias, &added, |bias| {
            let mut y = poisoned(&[t, n]);
            Cpu.gemm(Gemm::linear(x.view(), weight.view(), Some(bias.view()), y.view_mut())).unwrap();
            dot(y.view().f32(), dy.view().f32())
        });
    }
}

#[test]
fn embedding_gradient() {
    let (t, v, d) = (9, 5, 6);
    let ids = Tensor::from_i32(&[3, 0, 3, 4, 0, 0, 3, 4, 4], &[t]);
    let order = Tensor::from_i32(&[1, 4, 5, 0, 2, 6, 3, 7, 8], &[t]);
    let (table, dout) = (tensor(3, &[v, d]), tensor(4, &[t, d]));
    let lookup = |table: &Tensor, ids: &Tensor| {
        let mut out = poisoned(&[t, d]);
        Cpu.embedding(Embedding { table: table.view(), ids: ids.view(), out: out.view_mut() }).map(|()| out)
    };
    let out = lookup(&table, &ids).unwrap();
    assert_eq!(out.view().f32()[12..18], table.view().f32()[18..24]);
    let backward = |mut dtable: Tensor| {
        let (dout, ids, order) = (dout.view(), ids.view(), order.view());
        Cpu.embedding_backward(EmbeddingBackward { dout, ids, order, dtable: dtable.view_mut() }).unwrap();
        dtable.view().f32().to_vec()
    };
    let dtable = backward(zeros(&[v, d]));
    check_gradient("embedding", &table, &dtable, |table| dot(lookup(table, &ids).unwrap().view().f32(), dout.view().f32()));
    assert_eq!(dtable[6..18], [0.0; 12], "ids that do not occur");
    let before = tensor(5, &[v, d]);
    let added: Vec<f32> = backward(tensor(5, &[v, d])).iter().zip(before.view().f32()).map(|(a, b)| a - b).collect();
    assert!(relative_error(&added, &dtable) < 1e-6, "the gradient is added");
    for wrong in [5, -1] {
        let ids = Tensor::from_i32(&[3, 0, wrong, 4, 0, 0, 3, 4, 4], &[t]);
        assert!(lookup(&table, &ids).is_err());
    }
}

#[test]
fn cast_rounds_to_nearest_even_and_back_exactly() {
    let x = [1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -3.4e38, 1e-40, f32::INFINITY, 0.1];
    let (wide, mut narrow, mut back) = (Tensor::from_f32(&x, &[7]), Tensor::host(DType::Bf16, &[7]), poisoned(&[7]));
    Cpu.cast(wide.view(), narrow.view_mut()).unwrap();
    Cpu.cast(narrow.view(), back.view_mut()).unwrap();
    let tiny = f32::from_bits(0x0001_0000); // 1e-40 in bf16: a multiple of 2^-133
    let expected = [1.0, 1.0, 1.0 + 4.0 / 256.0, f32::NEG_INFINITY, tiny, f32::INFINITY, 0.100_097_656];
    assert_eq!(back.view().f32(), expected);
    let mut copy = poisoned(&[7]);
    Cpu.cast(wide.view(), copy.view_mut()).unwrap();
    assert_eq!(copy.view().f32(), x);
    assert!(Cpu.cast(wide.view(), Tensor::host(DType::I32, &[7]).view_mut()).is_err());
    assert!(Cpu.cast(wide.view(), Tensor::host(DType::Bf16, &[8]).view_mut()).is_err());
}

#[test]
fn swiglu_gradient() {
    let (t, f) = (3, 37);
    let (gate_up, dout) = (tensor(1, &[t, 2 * f]), tensor(2, &[t, f]));
    let mut dgate_up = poisoned(&[t, 2 * f]);
    Cpu.swiglu_backward(SwiGluBackward { gate_up: gate_up.view(), dout: dout.view(), dgate_up: dgate_up.view_mut() }).unwrap();
    check_gradient("swiglu", &gate_up, dgate_up.view().f32(), |x| {
        let mut out = poisoned(&[t, f]);
        Cpu.swiglu(SwiGlu { gate_up: x.view(), out: out.view_mut() }).unwrap();
        dot(out.view().f32(), dout.view().f32())
    });
}

#[test]
fn rope_turns_by_position_and_back() {
    let heads = HeadLayout { query: 3, kv: 1, dim: 4 };
    let positions = Tensor::from_i32(&[0, 1, 7], &[3]);
    let angles: Vec<f32> = (0..8).flat_map(|p| [p as f32, p as f32 * 0.01]).collect();
    let cos = Tensor::from_f32(&angles.iter().map(|a| a.cos()).collect::<Vec<_>>(), &[8, 2]);
    let sin = Tensor::from_f32(&angles.iter().map(|a| a.sin()).collect::<Vec<_>>(), &[8, 2]);
    let original = values(3 * 5 * 4, 1, 0.5, 1.0);
    let mut qkv = Tensor::from_f32(&original, &[3, 5, 4]);
    let mut turn = |inverse| {
        let (positions, cos, sin) = (positions.view(), cos.view(), sin.view());
        Cpu.rope(Rope { qkv: qkv.view_mut(), heads, positions, cos, sin, inverse }).unwrap();
        qkv.view().f32().to_vec()
    };
    let turned = turn(false);
    assert_eq!(turned[..20], original[..20], "position 0 is not turned");
    assert_eq!(turned[56..60], original[56..60], "values are not turned");
    let (x, y) = (original[2 * 20] as f64, original[2 * 20 + 2] as f64);
    assert!((turned[2 * 20] as f64 - (x * 7f64.cos() - y * 7f64.sin())).abs() < 1e-5);
    assert!((turned[2 * 20 + 2] as f64 - (y * 7f64.cos() + x * 7f64.sin())).abs() < 1e-5);
    assert!(relative_error(&turn(true), &original) < 1e-6);
}

#[test]
fn rope_gradient_is_the_inverse() {
    let heads = HeadLayout { query: 3, kv: 2, dim: 6 };
    let (t, p) = (5, 9);
    let positions = Tensor::from_i32(&[8, 0, 3, 3, 1], &[t]);
    let angles = values(p * 3, 7, 0.0, 3.0);
    let table = |f: fn(f32) -> f32| Tensor::from_f32(&angles.iter().map(|&a| f(a)).collect::<Vec<_>>(), &[p, 3]);
    let (cos, sin) = (table(f32::cos), table(f32::sin));
    let turn = |x: &Tensor, inverse| {
        let mut qkv = Tensor::from_f32(x.view().f32(), x.shape());
        let (positions, cos, sin) = (positions.view(), cos.view(), sin.view());
        Cpu.rope(Rope { qkv: qkv.view_mut(), heads, positions, cos, sin, inverse }).unwrap();
        qkv
    };
    let (qkv, dout) = (tensor(1, &[t, heads.fused(), 6]), tensor(2, &[t, heads.fused(), 6]));
    check_gradient("rope", &qkv, turn(&dout, true).view().f32(), |x| dot(turn(x, false).view().f32(), dout.view().f32()));
    let odd = HeadLayout { dim: 5, ..heads };
    let (positions, table) = (positions.view(), zeros(&[p, 2]));
    let (cos, sin) = (table.view(), table.view());
    let mut qkv = tensor(1, &[t, odd.fused(), 5]);
    assert!(Cpu.rope(Rope { qkv: qkv.view_mut(), heads: odd, positions, cos, sin, inverse: false }).is_err());
}

struct AttentionCase {
    heads: HeadLayout,
    cu_seqlens: Vec<i32>,
}

impl AttentionCase {
    fn all() -> Vec<AttentionCase> {
        let case = |query, kv, dim, lengths: &[i32]| {
            let mut cu_seqlens = vec![0];
            lengths.iter().for_each(|n| cu_seqlens.push(cu_seqlens.last().unwrap() + n));
            AttentionCase { heads: HeadLayout { query, kv, dim }, cu_seqlens }
        };
        vec![case(1, 1, 4, &[1]), case(6, 2, 8, &[5, 1, 9]), case(2, 2, 6, &[127, 2]), case(4, 1, 4, &[130, 129, 3])]
    }
    fn tokens(&self) -> usize {
        *self.cu_seqlens.last().unwrap() as usize
    }
    fn qkv_shape(&self) -> [usize; 3] {
        [self.tokens(), self.heads.fused(), self.heads.dim]
    }
    fn forward(&self, qkv: &Tensor) -> (Tensor, Tensor) {
        let HeadLayout { query, dim, .. } = self.heads;
        let (mut out, mut lse) = (poisoned(&[self.tokens(), query, dim]), poisoned(&[query, self.tokens()]));
        let cu_seqlens = Tensor::from_i32(&self.cu_seqlens, &[self.cu_seqlens.len()]);
        Cpu.attention(Attention {
            qkv: qkv.view(),
            heads: self.heads,
            cu_seqlens: cu_seqlens.view(),
            cu_seqlens_host: &self.cu_seqlens,
            out: out.view_mut(),
            lse: lse.view_mut(),
        })
        .unwrap();
        (out, lse)
    }
    /// The definition, in f64.
    fn reference(&self, qkv: &[f32]) -> Vec<f32> {
        let HeadLayout { query, kv, dim } = self.heads;
        let at = |t: usize, h: usize| &qkv[(t * self.heads.fused() + h) * dim..][..dim];
        let mut out = Vec::new();
        for w in self.cu_seqlens.windows(2) {
            for t in w[0] as usize..w[1] as usize {
                for q in 0..query {
                    let shared = q / (query / kv);
                    let weights: Vec<f64> = (w[0] as usize..=t)
                        .map(|u| (dot(at(t, q), at(u, query + shared)) / (dim as f64).sqrt()).exp())
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    out.extend((0..dim).map(|i| {
                        let mix = weights.iter().enumerate();
                        let mix: f64 = mix.map(|(u, p)| p * at(w[0] as usize + u, query + kv + shared)[i] as f64).sum();
                        (mix / sum) as f32
                    }));
                }
            }
        }
        out
    }
}

#[test]
fn attention_is_its_definition_and_its_gradient_that_of_it() {
    for case in AttentionCase::all() {
        let qkv = tensor(1, &case.qkv_shape());
        let HeadLayout { query, dim, .. } = case.heads;
        let (out, lse) = case.forward(&qkv);
        let error = relative_error(out.view().f32(), &case.reference(qkv.view().f32()));
        assert!(error <= 2e-6, "attention over {:?}: {error}", case.cu_seqlens);

        let dout = tensor(2, &[case.tokens(), query, dim]);
        let (mut delta, mut dqkv) = (poisoned(&[query, case.tokens()]), poisoned(&case.qkv_shape()));
        let cu_seqlens = Tensor::from_i32(&case.cu_seqlens, &[case.cu_seqlens.len()]);
        Cpu.attention_backward(AttentionBackward {
            qkv: qkv.view(),
            heads: case.heads,
            cu_seqlens: cu_seqlens.view(),
            cu_seqlens_host: &case.cu_seqlens,
            out: out.view(),
            lse: lse.view(),
            dout: dout.view(),
            delta: delta.view_mut(),
            scratch: Tensor::host(DType::U8, &[0]).view_mut(),
            dqkv: dqkv.view_mut(),
        })
        .unwrap();
        check_gradient("attention", &qkv, dqkv.view().f32(), |x| dot(case.forward(x).0.view().f32(), dout.view().f32()));
    }
}

#[test]
fn attention_refuses_heads_and_lengths_that_do_not_fit() {
    let run = |heads: HeadLayout, cu_seqlens: &[i32]| {
        let t = 4;
        let qkv = tensor(1, &[t, heads.fused(), heads.dim]);
        let (mut out, mut lse) = (poisoned(&[t, heads.query, heads.dim]), poisoned(&[heads.query, t]));
        let device = Tensor::from_i32(cu_seqlens, &[cu_seqlens.len()]);
        Cpu.attention(Attention {
            qkv: qkv.view(),
            heads,
            cu_seqlens: device.view(),
            cu_seqlens_host: cu_seqlens,
            out: out.view_mut(),
            lse: lse.view_mut(),
        })
    };
    let heads = |query, kv| HeadLayout { query, kv, dim: 2 };
    assert!(run(heads(4, 2), &[0, 1, 4]).is_ok());
    assert!(run(heads(5, 2), &[0, 4]).is_err());
    for bad in [&[0, 5][..], &[0, 3], &[1, 4], &[0, 3, 1, 4], &[0, 2, 2, 4], &[]] {
        assert!(run(heads(4, 2), bad).is_err(), "{bad:?}");
    }
}

#[test]
fn attention_over_pages_stands_where_packed_attention_does() {
    let heads = HeadLayout { query: 4, kv: 2, dim: 6 };
    let case = AttentionCase { heads, cu_seqlens: vec![0, 140, 143, 160] };
    let (qkv, positions) = (tensor(1, &case.qkv_shape()), 150);
    let [cos, sin] = [f32::cos, f32::sin].map(|f| {
        let values: Vec<f32> = (0..positions * 3).map(|i| f((i / 3) as f32 * 0.3f32.powi((i % 3) as i32))).collect();
        Tensor::from_f32(&values, &[positions, 3])
    });
    let (cos, sin) = (cos.view(), sin.view());
    let integers = |numbers: &[i32]| Tensor::from_i32(numbers, &[numbers.len()]);
    let mut rotated = Tensor::from_f32(qkv.view().f32(), &case.qkv_shape());
    let of_all: Vec<i32> = case.cu_seqlens.windows(2).flat_map(|w| 0..w[1] - w[0]).collect();
    let all = integers(&of_all);
    Cpu.rope(Rope { qkv: rotated.view_mut(), heads, positions: all.view(), cos, sin, inverse: false }).unwrap();
    let (whole, _) = case.forward(&rotated);

    let row = heads.fused() * heads.dim;
    let mut cache = zeros(&[6, 2, 2, 2 * PAGE * 6]);
    let tables = [[4, 1, 5], [0, 9, 9], [3, 9, 9]];
    let mut cached = [0usize; 3];
    // Uneven chunks; nothing new for a sequence; single tokens, as the last of theirs.
    for (last, step) in [(false, [63, 1, 5]), (false, [70, 1, 0]), (true, [1, 1, 1]), (false, [6, 0, 11])] {
        let mut cu_seqlens = vec![0i32];
        let (mut new, mut expected, mut at, mut rows, mut table, mut lengths) =
            (vec![], vec![], vec![], vec![], vec![], vec![]);
        for i in (0..3).filter(|&i| step[i] > 0) {
            let first = case.cu_seqlens[i] as usize + cached[i];
            new.extend(&qkv.view().f32()[first * row..(first + step[i]) * row]);
            expected.extend(&whole.view().f32()[first * 24..(first + step[i]) * 24]);
            let positions = cached[i]..cached[i] + step[i];
            at.extend(positions.clone().map(|p| p as i32));
            rows.extend(positions.map(|p| tables[i][p / PAGE] * PAGE as i32 + (p % PAGE) as i32));
            table.extend(tables[i]);
            cached[i] += step[i];
            lengths.push(cached[i] as i32);
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + step[i] as i32);
        }
        let (tokens, sequences) = (at.len(), lengths.len());
        let mut new = Tensor::from_f32(&new, &[tokens, heads.fused(), heads.dim]);
        let [at, rows, lengths, cu] = [&at, &rows, &lengths, &cu_seqlens].map(|numbers| integers(numbers));
        let cos_sin = (cos, sin);
        Cpu.paged_rope(PagedRope {
            qkv: new.view_mut(),
            heads,
            positions: at.view(),
            rows: rows.view(),
            cos: cos_sin.0,
            sin: cos_sin.1,
            cache: cache.view_mut(),
            layer: 1,
        })
        .unwrap();
        let mut out = poisoned(&[tokens, heads.query, heads.dim]);
        let chunks = PagedQueries::Chunks { cu_seqlens: cu.view(), cu_seqlens_host: &cu_seqlens };
        Cpu.paged_attention(PagedAttention {
            qkv: new.view(),
            heads,
            queries: if last { PagedQueries::Last } else { chunks },
            cache: cache.view(),
            layer: 1,
            pages: Tensor::from_i32(&table, &[sequences, 3]).view(),
            lengths: lengths.view(),
            scratch: Tensor::host(DType::U8, &[0]).view_mut(),
            out: out.view_mut(),
        })
        .unwrap();
        let error = relative_error(out.view().f32(), &expected);
        assert!(error <= 2e-6, "step {step:?}: {error}");
    }
    assert_eq!(cached, [140, 3, 17]);
    assert!(cache.view().f32().chunks(2 * 2 * PAGE * 6).step_by(2).all(|layer| layer.iter().all(|&x| x == 0.0)), "of layer 0");
}

#[test]
fn classifier_loss_and_gradients() {
    // Chunks of 4 rows; the last is short, and one holds no target at all.
    let (t, d, v, chunk) = (11, 6, 21, 4);
    let (hidden, head) = (tensor(1, &[t, d]), tensor(2, &[v, d]));
    let targets = Tensor::from_i32(&[3, IGNORE, 20, 0, IGNORE, IGNORE, IGNORE, IGNORE, 7, 7, IGNORE], &[t]);
    let scales = Tensor::from_f32(&values(t, 3, 0.5, 0.2), &[t]);
    let run = |hidden: &Tensor, head: &Tensor| {
        let (mut losses, mut logits) = (poisoned(&[t]), poisoned(&[chunk, v]));
        let (mut dhidden, mut dhead) = (poisoned(&[t, d]), zeros(&[v, d]));
        let gradients = ClassifierGradients { scales: scales.view(), dhidden: dhidden.view_mut(), dhead: dhead.view_mut() };
        Cpu.classifier(Classifier {
            hidden: hidden.view(),
            head: head.view(),
            targets: targets.view(),
            losses: losses.view_mut(),
            logits: logits.view_mut(),
            gradients: Some(gradients),
        })
        .unwrap();
        (losses, dhidden, dhead)
    };
    let loss = |hidden: &Tensor, head: &Tensor| dot(run(hidden, head).0.view().f32(), scales.view().f32());
    let (losses, dhidden, dhead) = run(&hidden, &head);
    for (row, &target) in targets.view().i32().iter().enumerate() {
        let logits: Vec<f64> =
            (0..v).map(|c| dot(&hidden.view().f32()[row * d..][..d], &head.view().f32()[c * d..][..d])).collect();
        let lse = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        let expected = if target == IGNORE { 0.0 } else { lse - logits[target as usize] };
        assert!((losses.view().f32()[row] as f64 - expected).abs() < 1e-5, "row {row}");
    }
    check_gradient("classifier hidden", &hidden, dhidden.view().f32(), |x| loss(x, &head));
    check_gradient("classifier head", &head, dhead.view().f32(), |x| loss(&hidden, x));
}

#[test]
fn classifier_in_bf16_follows_f32_and_zeroes_what_is_ignored() {
    let (t, d, v, chunk) = (7, 8, 24, 2);
    let rounded = |seed, shape: &[usize]| Tensor::from_f32_as_bf16(&values(shape.iter().product(), seed, 0.1, 0.5), shape);
    let wide = |x: &Tensor| x.view().bf16().iter().map(|x| x.to_f32()).collect::<Vec<_>>();
    let (hidden, head) = (rounded(1, &[t, d]), rounded(2, &[v, d]));
    let targets = Tensor::from_i32(&[3, 23, IGNORE, IGNORE, 0, IGNORE, 5], &[t]);
    let scales = Tensor::from_f32(&values(t, 3, 0.5, 0.2), &[t]);
    let run = |ops: &dyn Ops, hidden: &Tensor, head: &Tensor, mut dhidden: Tensor, mut logits: Tensor| {
        let (mut losses, mut dhead) = (poisoned(&[t]), zeros(&[v, d]));
        let gradients = ClassifierGradients { scales: scales.view(), dhidden: dhidden.view_mut(), dhead: dhead.view_mut() };
        ops.classifier(Classifier {
            hidden: hidden.view(),
            head: head.view(),
            targets: targets.view(),
            losses: losses.view_mut(),
            logits: logits.view_mut(),
            gradients: Some(gradients),
        })
        .unwrap();
        (losses.view().f32().to_vec(), dhidden, dhead.view().f32().to_vec())
    };
    let nan = |shape: &[usize]| Tensor::from_f32_as_bf16(&vec![f32::NAN; shape.iter().product()], shape);
    let (losses, dhidden, dhead) = run(&CpuBf16, &hidden, &head, nan(&[t, d]), nan(&[chunk, v]));
    let exact = [Tensor::from_f32(&wide(&hidden), &[t, d]), Tensor::from_f32(&wide(&head), &[v, d])];
    let expected = run(&Cpu, &exact[0], &exact[1], poisoned(&[t, d]), poisoned(&[chunk, v]));
    assert!(relative_error(&losses, &expected.0) <= 1e-2);
    assert!(relative_error(&wide(&dhidden), expected.1.view().f32()) <= 2e-2);
    assert!(relative_error(&dhead, &expected.2) <= 2e-2);
    assert!(wide(&dhidden)[2 * d..4 * d].iter().all(|&x| x == 0.0), "an ignored chunk");
}

#[test]
fn square_sums_keep_nan() {
    let n = 2 * SQUARE_SUMS_CHUNK + 5;
    let mut x = values(n, 1, 1.0, 1.0);
    let run = |x: &[f32]| {
        let mut sums = poisoned(&[3]);
        Cpu.square_sums(SquareSums { x: Tensor::from_f32(x, &[n]).view(), sums: sums.view_mut() }).unwrap();
        sums.view().f32().to_vec()
    };
    let exact: f64 = x.iter().map(|&x| (x as f64).powi(2)).sum();
    let sum: f64 = run(&x).iter().map(|&s| s as f64).sum();
    assert!((sum / exact - 1.0).abs() < 1e-6);
    x[n - 1] = f32::NAN;
    assert!(run(&x)[2].is_nan() && run(&x)[0].is_finite());
}
