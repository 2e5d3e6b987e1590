"""cinder-scheduler, one cinder-volume per backend and cinder-api, one process.

The Service and WSGIService objects are the ones /usr/bin/cinder-* build; being
in one process lets oslo.messaging's in-memory transport carry the RPC, so that
no message broker is needed, and keeps SQLite single-writer.
"""
import sys

import eventlet
eventlet.monkey_patch()
import __original_module_threading as _ot  # noqa: E402  as every cinder/cmd does
import threading  # noqa: E402
_ot.current_thread.__globals__['_active'] = threading._active

import shlex  # noqa: E402

import os_brick  # noqa: E402
from oslo_config import cfg  # noqa: E402
from oslo_log import log as logging  # noqa: E402
from oslo_privsep import priv_context  # noqa: E402
from oslo_service import service as oslo_service  # noqa: E402

from cinder import i18n  # noqa: E402
i18n.enable_lazy()
from cinder.common import config, constants  # noqa: E402
from cinder import coordination, objects, rpc, service, utils, version  # noqa: E402

CONF = cfg.CONF
objects.register_all()
CONF(sys.argv[1:], project='cinder', version=version.version_string())
config.set_middleware_defaults()
logging.setup(CONF, 'cinder')
priv_context.init(root_helper=shlex.split(utils.get_root_helper()))
os_brick.setup(CONF)
coordination.COORDINATOR.start()
rpc.init(CONF)



class BoxService(service.Service):
    """Service.service_id is a CLASS attribute: with several services in one
    process every heartbeat would go to the service created last, and the other
    backends would be taken for dead after service_down_time (60 s)."""

    def report_state(self):
        service.Service.service_id = self.origin_service_id
        super().report_state()


launcher = oslo_service.ServiceLauncher(CONF)
launcher.launch_service(BoxService.create(binary='cinder-scheduler'))
for backend in CONF.enabled_backends:
    CONF.register_opt(cfg.StrOpt('backend_host'), group=backend)
    launcher.launch_service(BoxService.create(
        host='%s@%s' % (CONF.host, backend), service_name=backend,
        binary=constants.VOLUME_BINARY))
launcher.launch_service(service.WSGIService('osapi_volume'))
launcher.wait()
