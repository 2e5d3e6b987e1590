"""The schemas of Nova, Placement, Glance and Neutron. oslo.config takes one command line a process, hence the forks; two at a time."""
import os
import sqlite3
import sys

there = sys.argv[1]
cell0, cell1 = ('sqlite:///%s/%s.db' % (there, name) for name in ('cell0', 'cell1'))


def nova(*words):
    from nova.cmd import manage
    sys.argv = ['nova-manage', '--config-file', there + '/nova.conf'] + list(words)
    return manage.main()


def placement():
    os.environ['OS_PLACEMENT_CONFIG_DIR'] = there + '/placement'
    from placement.cmd import manage
    sys.argv = ['placement-manage', '--config-dir', there + '/placement', 'db', 'sync']
    return manage.main()


def glance():
    from glance.cmd import manage
    sys.argv = ['glance-manage', '--config-file', there + '/glance/glance-api.conf', 'db_sync']
    return manage.main()


def neutron():
    # Its migrations alter tables in ways that SQLite has not: the tables are made as the newest models have them.
    from neutron.db.migration.models import head
    import sqlalchemy
    engine = sqlalchemy.create_engine('sqlite:///%s/neutron.db' % there)
    head.get_metadata().create_all(engine)


def several(*steps):
    for step in steps:
        if step():
            return 1


def run(task):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = task() or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def wait(*pids):
    for pid in pids:
        if os.waitpid(pid, 0)[1]:
            sys.exit('a schema could not be made')


others = run(lambda: several(lambda: wait(run(placement)), lambda: wait(run(glance)), lambda: wait(run(neutron))))
for words in (['api_db', 'sync'], ['cell_v2', 'map_cell0', '--database_connection', cell0], ['db', 'sync'],
              ['cell_v2', 'create_cell', '--name', 'cell1', '--database_connection', cell1, '--transport-url', 'fake:///']):
    wait(run(lambda: nova(*words)))
wait(others)
for name in ('api', 'cell0', 'cell1', 'placement', 'glance', 'neutron'):
    sqlite3.connect('%s/%s.db' % (there, name)).execute('pragma journal_mode=wal')
