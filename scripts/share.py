"""A share of a long list, others every day: the options --share and --day of scripts that test-all runs in part."""


def add_options(parser, what):
    parser.add_argument("--share", type=int, default=1, metavar="N", help=f"every N-th {what}")
    parser.add_argument("--day", type=int, default=0, metavar="D", help="which ones: those of D modulo N")


def check_options(parser, options):
    if options.share < 1:
        parser.error(f"--share is {options.share}: at least 1 is allowed")


def of(items, options):
    return items[options.day % options.share::options.share]
