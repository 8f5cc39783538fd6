#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"

enum { SIZE = 64 * 4096 };

/* A file of SIZE bytes, mapped privately. */
static unsigned char *map_file(int protection)
{
    char path[] = "/tmp/symphony-memory-XXXXXX";
    static unsigned char bytes[SIZE];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    memset(bytes, 'f', sizeof bytes);
    assert_int_equal(write(fd, bytes, sizeof bytes), sizeof bytes);
    unsigned char *at = mmap(NULL, SIZE, protection, MAP_PRIVATE, fd, 0);
    assert_true(at != MAP_FAILED);
    close(fd);
    return at;
}

static size_t count(const unsigned char *at, unsigned char c)
{
    size_t n = 0;
    for (size_t i = 0; i < SIZE; i++) {
        n += at[i] == c;
    }
    return n;
}

/* KiB of the mapping at @at that are in this process's page tables. */
static unsigned long resident(const void *at)
{
    char line[512];
    unsigned long start, end, kib = 0;
    FILE *f = fopen("/proc/self/smaps", "r");
    bool inside = false;
    assert_non_null(f);
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            inside = (uintptr_t)at >= start && (uintptr_t)at < end;
        } else if (inside && sscanf(line, "Rss: %lu kB", &kib) == 1) {
            break;
        }
    }
    fclose(f);
    return kib;
}

static void what_is_as_in_its_file_goes_and_comes_back(void **state)
{
    (void)state;
    unsigned char *at = map_file(PROT_READ);
    assert_int_equal(count(at, 'f'), SIZE);
    assert_int_equal(resident(at), SIZE / 1024);
    memory_release();
    assert_int_equal(resident(at), 0);
    assert_int_equal(count(at, 'f'), SIZE);
    munmap(at, SIZE);
}

/* As the loader does with what it has relocated. */
static void what_was_changed_stays_also_when_it_is_read_only_by_now(void **state)
{
    (void)state;
    unsigned char *at = map_file(PROT_READ | PROT_WRITE);
    at[5 * 4096] = 'x';
    assert_int_equal(mprotect(at, SIZE, PROT_READ), 0);
    memory_release();
    assert_int_equal(at[5 * 4096], 'x');
    assert_int_equal(count(at, 'f'), SIZE - 1);
    munmap(at, SIZE);
}

static void what_has_no_file_stays(void **state)
{
    (void)state;
    unsigned char *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(at != MAP_FAILED);
    memset(at, 'a', SIZE);
    assert_int_equal(mprotect(at, SIZE, PROT_READ), 0);
    memory_release();
    assert_int_equal(count(at, 'a'), SIZE);
    munmap(at, SIZE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_as_in_its_file_goes_and_comes_back),
        cmocka_unit_test(what_was_changed_stays_also_when_it_is_read_only_by_now),
        cmocka_unit_test(what_has_no_file_stays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
