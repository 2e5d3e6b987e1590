/* The only process of the test guest: writes page after page, first to one disk, then the same to the other, and says how far it is.
 *
 * Page n goes to a place that follows from n, and is made of numbers that follow from n. So whoever finds the highest n on a disk knows
 * every byte that the guest had written by then; and of one instant the two disks have the same n, or the first has one more. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, FIRST = 1 << 20, DISKS = 2 };

/* splitmix64 */
static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

static void load(const char *module) {
    int fd = open(module, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0)) printf("%s: cannot be loaded\n", module);
}

int main(void) {
    static const char *modules[] = {"/virtio_ring.ko",           "/virtio.ko",     "/virtio_pci_legacy_dev.ko",
                                    "/virtio_pci_modern_dev.ko", "/virtio_pci.ko", "/virtio_blk.ko"};
    static const char *paths[DISKS] = {"/dev/vda", "/dev/vdb"};
    int disks[DISKS];
    uint64_t *page, n = 0;
    /* From the kernel's command line. */
    const char *given = getenv("pages");
    uint64_t pages = given ? strtoull(given, NULL, 10) : 4096;

    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    dup2(console, 1);
    setbuf(stdout, NULL);
    for (unsigned i = 0; i < sizeof modules / sizeof *modules; i++) load(modules[i]);
    for (int i = 0; i < DISKS; i++)
        while ((disks[i] = open(paths[i], O_RDWR | O_DIRECT | O_DSYNC)) < 0) usleep(10000);
    if (posix_memalign((void **)&page, PAGE, PAGE)) return 1;
    /* Goes on where it was when the machine was last switched off. */
    for (uint64_t place = 0; place < pages; place++)
        if (pread(disks[0], page, PAGE, FIRST + place * PAGE) == PAGE && page[0] > n) n = page[0];
    if (n == 0) n = 1;
    for (;; n++) {
        for (uint64_t i = 0; i < WORDS; i++) page[i] = mix(n * WORDS + i);
        page[0] = n;
        for (int i = 0; i < DISKS; i++)
            if (pwrite(disks[i], page, PAGE, FIRST + mix(n) % pages * PAGE) != PAGE)
                printf("write error on %s at %llu\n", paths[i], (unsigned long long)n);
        if (n % 16 == 0) printf("wrote %llu\n", (unsigned long long)n);
        usleep(2000);
    }
}
