/*
A step of generating text on a CPU: one token of each of a few texts. All it does with a weight is one multiplication
for each text, so that it takes as long as reading the weights takes. These are stored in 32, 16 or 8 bits, read once
for all texts, fetched ahead, and multiplied in float32; and no Python runs between them.

common/kernels.py compiles this file for the CPU at hand, by any C compiler. Tensors are contiguous; a matrix has a
multiple of 64 inputs, and 4 outputs or more; head_dim is a multiple of 16.
*/
#include <math.h>
#include <stdint.h>

#ifdef __F16C__
#include <immintrin.h>
#endif

#define AHEAD 6144  /* bytes from what is read to what is fetched: within a page a CPU does so itself, but not beyond */

/* Vectors of float32, for which C has operators */
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t shorts __attribute__((vector_size(2 * LANES), aligned(2)));

/* Types of weights, and of what a cache keeps; 16 bits as bits */
typedef float float32;
typedef uint16_t float16, bfloat16;
typedef int8_t int8;

/* load: LANES numbers of each type, as float32; sum: of the lanes */
static inline vec load_float32(const float32 *p) { return *(const vec *)p; }
static inline vec load_bfloat16(const bfloat16 *p) {
    return (vec)(__builtin_convertvector(*(const shorts *)p, ints) << 16);  /* the upper half of a float32 */
}
#if defined(__AVX512F__)
static inline vec load_float16(const float16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
static inline vec load_int8(const int8 *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
static inline float sum(vec v) { return _mm512_reduce_add_ps(v); }
#elif defined(__AVX2__) && defined(__F16C__)
static inline vec load_float16(const float16 *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
static inline vec load_int8(const int8 *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
static inline float sum(vec v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    four = _mm_hadd_ps(four, four);
    return _mm_cvtss_f32(_mm_hadd_ps(four, four));
}
#else  /* another CPU, whose compiler knows what it has */
static inline vec load_float16(const float16 *p) {
    vec v;
    for (int i = 0; i < LANES; i++) v[i] = ((const _Float16 *)p)[i];
    return v;
}
static inline vec load_int8(const int8 *p) {
    vec v;
    for (int i = 0; i < LANES; i++) v[i] = p[i];
    return v;
}
static inline float sum(vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}
#endif

static inline void store_float32(float32 *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
}
static inline void store_float16(float16 *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
#ifdef __F16C__
        to[i] = _cvtss_sh(from[i], _MM_FROUND_TO_NEAREST_INT);
#else
        ((_Float16 *)to)[i] = from[i];
#endif
    }
}

/* ---------------------------------------------------------------------------------------------------------------------
Matrices
*/
typedef struct {
    const void *weight;         /* (N, K), of the type with this number: float32, float16, bfloat16, int8 */
    const float *scale, *bias;  /* (N), or null */
    int64_t N, K, type;
} matrix;

/*
The outputs n to n + OUTPUTS - 1 of ROWS rows. A weight is loaded once for all rows, an input once for all outputs, and
the sums stay in registers.
*/
#define PRODUCT(TYPE, OUTPUTS, ROWS) \
static void TYPE##_rows_##ROWS(const matrix *m, const float *x, float *y, int64_t n) { \
    const int64_t K = m->K; \
    const TYPE *weight = (const TYPE *)m->weight + n * K; \
    vec sums[OUTPUTS][ROWS]; \
    for (int j = 0; j < OUTPUTS; j++) \
        for (int r = 0; r < ROWS; r++) sums[j][r] = (vec){0}; \
    for (int64_t line = 0; line < K; line += 64 / sizeof(TYPE)) {  /* a cache line has 64 bytes */ \
        for (int j = 0; j < OUTPUTS; j++) __builtin_prefetch((const char *)(weight + j * K + line) + AHEAD); \
        _Pragma("GCC unroll 2")  /* with more, GCC has too few registers for the sums */ \
        for (int64_t k = line; k < line + 64 / (int64_t)sizeof(TYPE); k += LANES) { \
            vec inputs[ROWS]; \
            for (int r = 0; r < ROWS; r++) inputs[r] = load_float32(x + r * K + k); \
            for (int j = 0; j < OUTPUTS; j++) { \
                vec weights = load_##TYPE(weight + j * K + k); \
                for (int r = 0; r < ROWS; r++) sums[j][r] += inputs[r] * weights; \
            } \
        } \
    } \
    for (int j = 0; j < OUTPUTS; j++) \
        for (int r = 0; r < ROWS; r++) \
            y[r * m->N + n + j] = sum(sums[j][r]) * (m->scale ? m->scale[n + j] : 1) + (m->bias ? m->bias[n + j] : 0); \
}

#define LINEAR(TYPE) \
PRODUCT(TYPE, 4, 1) PRODUCT(TYPE, 4, 2) PRODUCT(TYPE, 2, 3) PRODUCT(TYPE, 2, 4) \
static void linear_##TYPE(const matrix *m, const float *x, float *y, int64_t rows) { \
    _Pragma("omp parallel for schedule(static)") \
    for (int64_t block = 0; block < m->N; block += 4) { \
        int64_t n = block + 4 > m->N ? m->N - 4 : block;  /* the last four, some of them once more */ \
        for (int64_t r = 0; r < rows; r += 4) { \
            const float *xr = x + r * m->K; \
            float *yr = y + r * m->N; \
            if (rows - r == 1) TYPE##_rows_1(m, xr, yr, n); \
            else if (rows - r == 2) TYPE##_rows_2(m, xr, yr, n); \
            else if (rows - r == 3) { TYPE##_rows_3(m, xr, yr, n); TYPE##_rows_3(m, xr, yr, n + 2); } \
            else { TYPE##_rows_4(m, xr, yr, n); TYPE##_rows_4(m, xr, yr, n + 2); } \
        } \
    } \
}

LINEAR(float32)
LINEAR(float16)
LINEAR(bfloat16)
LINEAR(int8)

/* y (rows, N) = x (rows, K) weight^T * scale + bias */
void linear(const matrix *m, const float *x, float *y, int64_t rows) {
    static void (*const of_type[])(const matrix *, const float *, float *, int64_t) = {
        linear_float32, linear_float16, linear_bfloat16, linear_int8};
    of_type[m->type](m, x, y, rows);
}

/* ---------------------------------------------------------------------------------------------------------------------
What is between them
*/
static inline vec choose(ints where, vec a, vec b) { return (vec)(((ints)a & where) | ((ints)b & ~where)); }

/* e^x to 1e-7, for x up to 88; 0 below -87. A power of 2, and a polynomial for the rest (Cephes, expf.c). */
static inline vec exponential(vec x) {
    const float round = 12582912;  /* 1.5 * 2^23: a sum with it has no digits behind the point */
    vec sum = x * 1.44269504f + round, n = sum - round;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r
             + 1.6666665459e-1f) * r + 5.0000001201e-1f;
    vec power = (vec)(((ints)sum << 23) + (127 << 23));
    return choose(x < -87, (vec){0}, (p * r * r + r + 1) * power);  /* what is not a number stays so */
}

enum { GELU, GELU_TANH, RELU_SQUARED };

static inline vec activate(vec x, int64_t kind) {
    vec zero = {0};
    if (kind == RELU_SQUARED) return choose(x < 0, zero, x * x);
    if (kind == GELU_TANH) {  /* x / 2 (1 + tanh(u / 2)) = x / (1 + e^-u) */
        vec u = 1.5957691f * (x + 0.044715f * x * x * x), e = exponential(choose(u > 0, -u, u));
        return x / (1 + e) * choose(u > 0, zero + 1, e);
    }
    /* x / 2 (1 + erf(x / sqrt(2))): Abramowitz and Stegun 7.1.26, to 2e-7 */
    vec a = choose(x < 0, -x, x) * 0.70710678f, t = 1 / (1 + 0.3275911f * a);
    vec p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    vec tail = p * exponential(-a * a);  /* 1 - erf(a) */
    return 0.5f * x * choose(x < 0, tail, 2 - tail);
}

/* LayerNorm of x (D); weight and bias (D) or null */
static void norm(float *y, const float *x, const float *weight, const float *bias, int64_t D) {
    vec total = {0}, squares = {0};
    for (int64_t i = 0; i < D; i += LANES) total += load_float32(x + i);
    float mean = sum(total) / D;
    for (int64_t i = 0; i < D; i += LANES) squares += (load_float32(x + i) - mean) * (load_float32(x + i) - mean);
    float scale = 1 / sqrtf(sum(squares) / D + 1e-5f);
    for (int64_t i = 0; i < D; i++) y[i] = (x[i] - mean) * scale * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
}

/* Rotary position embedding of x (D), by D / 2 angles */
static void rotate(float *x, const float *cosine, const float *sine, int64_t D) {
    for (int64_t i = 0; i < D / 2; i++) {
        float a = x[i], b = x[i + D / 2];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + D / 2] = a * sine[i] + b * cosine[i];
    }
}

/*
The attention of one head: its new key and value (D) go into a slot of keys and values (size, D), and y (D) becomes
softmax(scale q keys^T) values over the first `used` slots, or those of them where counts (used) is 1. p: room for
`used` numbers and a vector.
*/
#define ATTEND(TYPE) \
static void attend_##TYPE(const float *q, const float *k, const float *v, TYPE *keys, TYPE *values, \
                          const uint8_t *counts, int64_t slot, int64_t used, int64_t D, float scale, \
                          float *p, float *y) { \
    store_##TYPE(keys + slot * D, k, D); \
    store_##TYPE(values + slot * D, v, D); \
    float largest = -INFINITY; \
    vec total = {0}; \
    for (int64_t s = 0; s < used; s++) { \
        vec product = {0}; \
        __builtin_prefetch((const char *)(keys + s * D) + AHEAD / 3); \
        for (int64_t d = 0; d < D; d += LANES) product += load_float32(q + d) * load_##TYPE(keys + s * D + d); \
        p[s] = counts && !counts[s] ? -INFINITY : scale * sum(product); \
        largest = p[s] > largest ? p[s] : largest; \
    } \
    for (int64_t s = used; s < used + LANES; s++) p[s] = -INFINITY;  /* the last vector may be longer */ \
    for (int64_t s = 0; s < used; s += LANES) { \
        *(vec *)(p + s) = exponential(load_float32(p + s) - largest); \
        total += load_float32(p + s); \
    } \
    float share = 1 / sum(total); \
    for (int64_t d = 0; d < D; d++) y[d] = 0; \
    for (int64_t s = 0; s < used; s++) { \
        __builtin_prefetch((const char *)(values + s * D) + AHEAD / 3); \
        float weight = p[s] * share; \
        for (int64_t d = 0; d < D; d += LANES) *(vec *)(y + d) += weight * load_##TYPE(values + s * D + d); \
    } \
}

ATTEND(float32)
ATTEND(float16)

/* ---------------------------------------------------------------------------------------------------------------------
The blocks of a model
*/
typedef struct {
    matrix c_attn, attn_proj, c_fc, mlp_proj;
    const float *norm_1, *bias_1, *norm_2, *bias_2;  /* or null */
    void *keys, *values;                             /* (rows, n_head, size, head_dim) */
} block;

typedef struct {
    int64_t rows, n_head, activation;
    float scale;                 /* of the products of queries and keys */
    const float *cosine, *sine;  /* (rows, head_dim / 2), or null in a classic model; a modern one normalizes q and k */
    const uint8_t *mask;         /* (rows, used), or null */
    int64_t size, slot, used;    /* of the cache */
    int64_t is_float16;          /* whether it is, or float32 */
    float *room;                 /* rows * (9 C + n_head * (used + 16)) numbers */
} settings;

static void attention(const block *b, const settings *s, float *qkv, float *p, float *y) {
    int64_t C = b->c_attn.K, D = C / s->n_head, length = s->used + 16;
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < s->rows * s->n_head; i++) {
        int64_t row = i / s->n_head;
        float *q = qkv + row * 3 * C + i % s->n_head * D, *k = q + C, *v = k + C;
        for (float *x = q; s->cosine && x <= k; x += C) {
            norm(x, x, 0, 0, D);
            rotate(x, s->cosine + row * D / 2, s->sine + row * D / 2, D);
        }
        const uint8_t *counts = s->mask ? s->mask + row * s->used : 0;
        int64_t start = i * s->size * D;
        if (s->is_float16)
            attend_float16(q, k, v, (float16 *)b->keys + start, (float16 *)b->values + start, counts, s->slot, s->used,
                           D, s->scale, p + i * length, y + i * D);
        else
            attend_float32(q, k, v, (float32 *)b->keys + start, (float32 *)b->values + start, counts, s->slot, s->used,
                           D, s->scale, p + i * length, y + i * D);
    }
}

/* All blocks, for the next token of each row: x (rows, C) is changed in place, its keys and values go to the caches */
void step(const block *blocks, int64_t n_layer, const settings *s, float *x) {
    for (const block *b = blocks; b < blocks + n_layer; b++) {
        int64_t rows = s->rows, C = b->c_attn.K, width = rows * C;
        float *y = s->room, *qkv = y + width, *hidden = qkv + 3 * width, *mean = hidden + 4 * width, *p = mean + width;

        for (int64_t r = 0; r < width; r += C) norm(y + r, x + r, b->norm_1, b->bias_1, C);
        linear(&b->c_attn, y, qkv, rows);
        attention(b, s, qkv, p, mean);
        linear(&b->attn_proj, mean, y, rows);
        for (int64_t i = 0; i < width; i++) x[i] += y[i];

        for (int64_t r = 0; r < width; r += C) norm(y + r, x + r, b->norm_2, b->bias_2, C);
        linear(&b->c_fc, y, hidden, rows);
        #pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < 4 * width; i += LANES)
            *(vec *)(hidden + i) = activate(load_float32(hidden + i), s->activation);
        linear(&b->mlp_proj, hidden, y, rows);
        for (int64_t i = 0; i < width; i++) x[i] += y[i];
    }
}
