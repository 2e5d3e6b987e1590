"""keystone-manage four times over, for the cost of one import: oslo.config takes one command line a process, hence the forks."""
import os
import sqlite3
import sys

from keystone.cmd import cli

conf, password = sys.argv[1:]
url = 'http://127.0.0.1:5000/v3'
root = ['--keystone-user', 'root', '--keystone-group', 'root']
for command in (['db_sync'], ['fernet_setup'] + root, ['credential_setup'] + root,
                # keystonemiddleware looks for the internal endpoint
                ['bootstrap', '--bootstrap-password', password, '--bootstrap-region-id', 'RegionOne',
                 '--bootstrap-public-url', url, '--bootstrap-internal-url', url, '--bootstrap-admin-url', url]):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = cli.main(argv=['keystone-manage', '--config-file', conf] + command) or 0
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)
    if os.waitpid(pid, 0)[1]:
        sys.exit('keystone-manage %s failed' % command[0])
sqlite3.connect(conf.replace('.conf', '.db')).execute('pragma journal_mode=wal')
