"""RBD volumes exported over iSCSI by user-space tgtd (bs_rbd.so).

Glue: the storage work is cinder's RBDDriver, the target work (iqn, CHAP
secret, tgt-admin) is cinder's own TgtAdm helper.
"""
from cinder.volume import driver
from cinder.volume.drivers import rbd
from cinder.volume.targets import tgt


class TgtRbd(tgt.TgtAdm):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # tgt-admin passes bsopts through a shell: ';id=...' would be cut off
        # there, so tgtd opens the image as client.admin.
        self.VOLUME_CONF = tgt.TgtAdm.VOLUME_CONF.replace(
            'driver %(driver)s',
            'driver %%(driver)s\n    bs-type rbd\n    bsopts "conf=%s"'
            % self.configuration.rbd_ceph_conf)


class RbdTgtDriver(rbd.RBDDriver):
    STORAGE_PROTOCOL = 'iSCSI'

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(driver.volume_opts)
        self.target = TgtRbd(configuration=self.configuration,
                             executor=self._execute)

    def _path(self, volume):
        return '%s/%s' % (self.configuration.rbd_pool, volume.name)

    def create_export(self, context, volume, connector):
        made = self.target.create_export(context, volume, self._path(volume))
        return {'provider_location': made['location'],
                'provider_auth': made['auth']}

    def ensure_export(self, context, volume):
        self.target.ensure_export(context, volume, self._path(volume))

    def remove_export(self, context, volume):
        self.target.remove_export(context, volume)

    def initialize_connection(self, volume, connector):
        return self.target.initialize_connection(volume, connector)

    def terminate_connection(self, volume, connector, **kwargs):
        return self.target.terminate_connection(volume, connector, **kwargs)
