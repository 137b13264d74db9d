//! A [`Login`] on its way to the owner. This is the only place where secrets are written down, and only the socket is written to.

use std::path::{Path, PathBuf};

use clip_engine::registry::{Environment, Login, Secret, Typed};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::protocol::{PathText, path};

#[derive(Serialize, Deserialize)]
struct Wire {
    typed: TypedWire,
    environment: Vec<(PathText, PathText)>,
    #[serde(with = "path")]
    directory: PathBuf,
    user_id: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
enum TypedWire {
    Nothing,
    Anonymous,
    Password {
        registry: String,
        user: String,
        password: String,
    },
    AuthFile {
        #[serde(with = "path")]
        path: PathBuf,
    },
}

/// Writes `login`, secrets and all.
pub fn serialize<S: Serializer>(login: &Login, serializer: S) -> Result<S::Ok, S::Error> {
    let typed = match &login.typed {
        Typed::Nothing => TypedWire::Nothing,
        Typed::Anonymous => TypedWire::Anonymous,
        Typed::Password { registry, user, password } => {
            TypedWire::Password { registry: registry.clone(), user: user.clone(), password: password.reveal().to_owned() }
        }
        Typed::AuthFile(path) => TypedWire::AuthFile { path: path.clone() },
    };
    let environment = login.environment.variables().map(|(name, value)| (Path::new(name).into(), Path::new(value).into())).collect();
    Wire { typed, environment, directory: login.directory.clone(), user_id: login.user_id }.serialize(serializer)
}

/// Reads what [`serialize`] wrote.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Login, D::Error> {
    let Wire { typed, environment, directory, user_id } = Wire::deserialize(deserializer)?;
    let typed = match typed {
        TypedWire::Nothing => Typed::Nothing,
        TypedWire::Anonymous => Typed::Anonymous,
        TypedWire::Password { registry, user, password } => Typed::Password { registry, user, password: Secret::new(password) },
        TypedWire::AuthFile { path } => Typed::AuthFile(path),
    };
    let environment = environment.into_iter().map(|(name, value)| (PathBuf::from(name), PathBuf::from(value)));
    Ok(Login { typed, environment: Environment::from_pairs(environment), directory, user_id })
}
