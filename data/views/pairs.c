/* The loop of pairs.py. No contraction: each operation is the one of `project_numpy` there, rounded as there. */

#include <stdint.h>

enum { BLOCK = 512 };

/* The points that a camera sees. `points`: 3 x N. `P`: 3 x 4, rows that give u * depth, v * depth and depth.
`point`: N, `uv`: N x 2, written as far as there are pairs. How many there are. */
int64_t tandem_pairs(const double *points, int64_t count, const double *P, double min_depth, double first, double last_u,
                     double last_v, int64_t *point, double *uv) {
    const double *x = points, *y = points + count, *z = points + 2 * count;
    double u[BLOCK], v[BLOCK];
    uint8_t seen[BLOCK];
    int64_t found = 0;
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t size = count - start < BLOCK ? count - start : BLOCK;
        for (int64_t i = 0; i < size; i++) {
            const double a = x[start + i], b = y[start + i], c = z[start + i];
            const double depth = P[8] * a + P[9] * b + P[10] * c + P[11];
            u[i] = (P[0] * a + P[1] * b + P[2] * c + P[3]) / depth;
            v[i] = (P[4] * a + P[5] * b + P[6] * c + P[7]) / depth;
            seen[i] = (depth > min_depth) & (u[i] >= first) & (u[i] <= last_u) & (v[i] >= first) & (v[i] <= last_v);
        }
        for (int64_t i = 0; i < size; i++)
            if (seen[i]) {
                point[found] = start + i;
                uv[2 * found] = u[i];
                uv[2 * found + 1] = v[i];
                found++;
            }
    }
    return found;
}
