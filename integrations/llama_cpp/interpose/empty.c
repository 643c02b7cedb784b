/* A shared library consists of what it is linked with. */
typedef int sinkcache_no_definitions;
