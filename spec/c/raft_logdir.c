/* The raft folder before libraft reads it: what does not need a log of a cluster (that is in raft_crash.c). */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "raft/logdir.h"

enum { SEGMENT_SIZE = 2 << 20 };

/* What users store can look like the heads of enormous batches, one beside the other: a write of that which was cut
 * short is told from damage all the same without reading it again for each of them. */
static void looks_through_a_torn_write_once(void **state)
{
    (void)state;
    static const uint64_t patterns[][2] = {{100000, 100000}, {60000, 1}, {1, 60000}, {1, 1}};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        char dir[] = "/tmp/raft_logdir.XXXXXX", path[64];
        assert_non_null(mkdtemp(dir));
        snprintf(path, sizeof path, "%s/open-1", dir);
        uint64_t *segment = malloc(SEGMENT_SIZE);
        assert_non_null(segment);
        for (size_t at = 0; at < SEGMENT_SIZE / sizeof *segment; at++) {
            segment[at] = patterns[i][at % 2];
        }
        segment[0] = 1; /* the format */
        assert_int_equal(file_write(path, segment, SEGMENT_SIZE, 0600), 0);
        free(segment);
        struct logdir found;
        clock_t began = clock();
        assert_int_equal(logdir_check(dir, &found), 0);
        double seconds = (double)(clock() - began) / CLOCKS_PER_SEC;
        print_message("pattern %zu: %.2f s of CPU\n", i, seconds);
        assert_true(seconds < 10);
        assert_true(found.has_segments && found.snapshot == 0);
        unlink(path);
        rmdir(dir);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(looks_through_a_torn_write_once),
    };
    log_setup(LOG_ERROR + 1, false);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
