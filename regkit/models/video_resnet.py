"""What torchvision's three video ResNets share."""

from torch import nn
from torchvision.models import get_model

from regkit.models.head import check_head
from regkit.models.pretrained import load_pretrained


def make_video_resnet(
    name: str, num_classes: int, dropout: float, pretrained: str | None
) -> nn.Module:
    """Build torchvision's model of that name, filled with weights if asked, with dropout."""
    check_head(name, num_classes, dropout)
    net = get_model(name, num_classes=num_classes)
    if pretrained is not None:
        load_pretrained(net, name, pretrained, head="fc")
    # After the pool, not before fc in one Sequential: parameters keep torchvision's names.
    net.avgpool = nn.Sequential(net.get_submodule("avgpool"), nn.Dropout(dropout))
    return net
