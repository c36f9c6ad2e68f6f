// What tests call of the pool: sums by pieces, also from several callers and in a forked child.
#include "../../../../models/lidar/native/pool.h"

extern "C" void fill_squares(int64_t* out, int64_t count, int threads) {
    tandem::Pool::instance().run(count, threads, [&](int64_t i) {
        int64_t* kept = tandem::scratch<struct Square, int64_t>(1);
        kept[0] = i;
        out[i] = kept[0] * i;
    });
}
