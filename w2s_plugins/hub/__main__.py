"""``python -m w2s_plugins.hub push RUN ORG/NAME``: publish the export of a finished run, without training again."""

from pathlib import Path

from ..errors import OneLineParser, UserError, called, nearest, run_main


def hub_parser() -> OneLineParser:
    """The parser of ``python -m w2s_plugins.hub``."""
    parser = OneLineParser(
        prog=called("python -m w2s_plugins.hub"), description="Publish models on the Hugging Face Hub.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    push = commands.add_parser("push", help="publish the export of a run")
    push.add_argument("run", metavar="RUN", type=Path, help="run folder, or its export/, which is published")
    push.add_argument("repo_id", metavar="ORG/NAME", help="repository, created when missing")
    push.add_argument("--private", action="store_true", default=None, help="create the repository private")
    push.add_argument("--revision", metavar="R", help="branch to push to, created when missing (default: main)")
    push.add_argument("--hub-license", metavar="ID", help="license in the card (default: what the run's card says)")
    push.add_argument("--commit-message", metavar="M", help="first line of the commit")
    push.add_argument("--checkpoint", action="store_true", help="also publish what --resume hf-hub:ORG/NAME goes on "
                      "from; of a run that is not finished, that alone")
    push.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main() -> None:
    """Command line: ``python -m w2s_plugins.hub push RUN ORG/NAME``."""
    args = hub_parser().parse_args()
    if not args.run.is_dir():
        siblings = [str(p) for p in args.run.parent.glob("*") if p.is_dir()]
        raise UserError(f"no run folder {args.run}{nearest(str(args.run), siblings)}")
    from .push import push_export  # after the flags: it takes seconds

    inside = args.run.resolve().name == "export" and not (args.run / "export").is_dir()
    export = args.run if inside else args.run / "export"
    how = dict(private=args.private, revision=args.revision, commit_message=args.commit_message)
    if export.is_dir() or not args.checkpoint:
        print(push_export(export, args.repo_id, license=args.hub_license, **how))
    if args.checkpoint:
        from ..run.published import push_checkpoint

        print(push_checkpoint(args.run.resolve().parent if inside else args.run, args.repo_id, **how))


if __name__ == "__main__":
    run_main(main, "w2s_plugins.hub")
